"""Starting a run on other machines, and again after a crash: batch files, torchrun, a supervisor."""

from ssl_med.launch.command import command_line, torchrun_line
from ssl_med.launch.slurm import SlurmJob, write_batch_file
from ssl_med.launch.supervise import Supervisor

__all__ = ["SlurmJob", "Supervisor", "command_line", "torchrun_line", "write_batch_file"]
