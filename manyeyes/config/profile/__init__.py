"""Where a pipeline runs: clusters, pools, images, storage. Never what it computes."""

from manyeyes.config.profile.environment import storage_environment
from manyeyes.config.profile.load import load_profile, parse_profile
from manyeyes.config.profile.sections import (
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
