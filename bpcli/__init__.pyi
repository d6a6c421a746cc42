from bpcli.api.benchmark import bench as bench
from bpcli.api.check_functions import check_gradient as check_gradient
from bpcli.api.check_report import GradientError as GradientError
from bpcli.api.check_report import Report as Report
from bpcli.api.loaded import LoadedProblem as LoadedProblem
from bpcli.api.loaded import load as load
from bpcli.api.train_runner import Trained as Trained
from bpcli.checking.findings import Finding as Finding
from bpcli.errors import BpError as BpError
from bpcli.methods.base import Gradient as Gradient
from bpcli.methods.base import StepGradients as StepGradients
from bpcli.problem.limits import Limits as Limits

__version__: str
