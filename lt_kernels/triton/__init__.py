"""GPU kernels, one file a room: functions with the operators' names and arguments (`ops.backends.library`)."""
