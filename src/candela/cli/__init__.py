"""The shell's door: arguments in, engine calls, files and messages out."""
