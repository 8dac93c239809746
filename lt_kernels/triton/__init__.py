"""GPU kernels, one file a room: functions with the operators' names and arguments (`lt_kernels.ops.library`)."""
