"""What runs in the server's own Python, which may have nothing of ours: the standard library, and one file each."""
