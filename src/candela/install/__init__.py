"""Getting models and the node pack onto a machine, checking them, and taking them away again.

Nothing here runs a model, and torch is never imported: what a card can hold is asked of its driver.
"""
