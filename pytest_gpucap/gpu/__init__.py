"""The GPU: classes, inventory, leases, and who uses a device. NVML is read, never written to."""
