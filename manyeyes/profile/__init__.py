"""Where a pipeline runs: clusters, pools, images, storage. Never what it computes."""

from manyeyes.profile.environment import storage_environment
from manyeyes.profile.load import load_profile, parse_profile
from manyeyes.profile.sections import (
    ClusterProfile,
    GpuTraining,
    Images,
    KubeflowSection,
    LaptopProfile,
    Pool,
    Profile,
    SecretVariable,
    StepPlacement,
    Storage,
    Toleration,
    Tracking,
    TrainJobSettings,
)

__all__ = [
    "ClusterProfile",
    "GpuTraining",
    "Images",
    "KubeflowSection",
    "LaptopProfile",
    "Pool",
    "Profile",
    "SecretVariable",
    "StepPlacement",
    "Storage",
    "Toleration",
    "Tracking",
    "TrainJobSettings",
    "load_profile",
    "parse_profile",
    "storage_environment",
]
