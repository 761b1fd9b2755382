//! The shell: owns time, threads and system calls, and drives the machines of [`crate::proto`].
