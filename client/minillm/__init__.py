"""Python client and command line of the distillation service.

from minillm import Client

with Client() as minillm:                     # MINILLM_URL and MINILLM_API_KEY
    job = minillm.create_job(spec)
    job = minillm.wait(job.id)
    minillm.download(job.id, "student")
"""

from minillm.api import Client, Pages
from minillm.errors import ApiError, DownloadError, MinillmError, SpecError, Unreachable
from minillm.types import (
    ApiKey,
    Attempt,
    Checkpoint,
    DryRun,
    Event,
    Failure,
    File,
    Health,
    Job,
    JobWarning,
    LogChunk,
    Manifest,
    ManifestFile,
    MetricPoint,
    Model,
    NewApiKey,
    NewJob,
    Progress,
    Readiness,
    Worker,
)
from minillm.version import VERSION as __version__

__all__ = [
    "ApiError",
    "ApiKey",
    "Attempt",
    "Checkpoint",
    "Client",
    "DownloadError",
    "DryRun",
    "Event",
    "Failure",
    "File",
    "Health",
    "Job",
    "JobWarning",
    "LogChunk",
    "Manifest",
    "ManifestFile",
    "MetricPoint",
    "MinillmError",
    "Model",
    "NewApiKey",
    "NewJob",
    "Pages",
    "Progress",
    "Readiness",
    "SpecError",
    "Unreachable",
    "Worker",
    "__version__",
]
