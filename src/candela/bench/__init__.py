"""Candela beside others, in one run: the same weights, noise and steps on both sides."""
