"""The GPU: classes, inventory, lease, telemetry, diagnosis. NVML is read, never written to."""
