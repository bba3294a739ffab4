"""A stand-in for Prodia's `POST /v2/job`: the same bytes on the wire, real pictures, its own bill, faults on demand.

Run by `kontext-gateway sandbox`, by `serve --sandbox` and by the tests. It imports nothing else of this project and
shares no table with it, so that an error in the gateway's idea of Prodia cannot hide behind the same error here.
"""

from .config import SandboxConfig
from .faults import Fault, FaultError
from .listen import serve_sandbox
from .scenario import load_scenario, switched
from .server import create_sandbox

__all__ = ["Fault", "FaultError", "SandboxConfig", "create_sandbox", "load_scenario", "serve_sandbox", "switched"]
