"""What runs in a process of its own beside the replicas: one file each."""
