"""The compiled read path: what an ordinary answer consists of is read and counted by machine code."""
