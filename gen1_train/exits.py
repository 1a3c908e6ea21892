"""The exit codes of the commands; slurm/train.bash and other launchers decide by them what comes next."""

MISTAKE = 2  # the user's, said in one line
INCOMPLETE = 3  # the command ran to its end, and not everything was good
LOST = 69  # a rank is gone, a checkpoint was written since the start: worth another (sysexits: EX_UNAVAILABLE)
STOPPED = 75  # asked to stop, after a step of this start, with a whole checkpoint: call again (sysexits: EX_TEMPFAIL)
INTERRUPTED = 130  # by Ctrl-C
