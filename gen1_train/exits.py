"""The exit codes of the commands; slurm/train.bash and other launchers decide by them what comes next."""

MISTAKE = 2  # the user's, said in one line
INCOMPLETE = 3  # the command ran to its end, and not everything was good
STOPPED = 75  # asked to stop, after a step of this start, with a whole checkpoint: call again (sysexits: EX_TEMPFAIL)
INTERRUPTED = 130  # by Ctrl-C
# a rank is gone, and a checkpoint was written since the start: worth another. Above all that a killed process ends
# with (128 + signal), since of the ranks' codes srun returns the highest
LOST = 200
