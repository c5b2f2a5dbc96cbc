"""What a profile means for a process: the variables that tell it where the store lies.

The secrets are not among them: the pod gets those from the Kubernetes secret that the profile
names, under the names boto3 knows (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``).
"""

from __future__ import annotations

from manyeyes.config.profile.sections import ClusterProfile, LaptopProfile


def storage_environment(profile: LaptopProfile | ClusterProfile) -> dict[str, str]:
    """Return the variables of a profile's storage; none for a laptop, whose store is a folder."""
    match profile:
        case LaptopProfile():
            return {}
        case ClusterProfile(storage=storage):
            place = "/".join(part for part in (storage.bucket, storage.prefix.strip("/")) if part)
            endpoint = {"AWS_ENDPOINT_URL": storage.endpoint} if storage.endpoint else {}
            remote = {"MANYEYES_SHARDS": storage.shards} if storage.shards == "remote" else {}
            return {
                "MANYEYES_STORE": f"s3://{place}",
                **endpoint,
                "AWS_REGION": storage.region,
                "AWS_DEFAULT_REGION": storage.region,  # the name that boto3 reads
                "MANYEYES_CACHE": storage.cache_path,
                "MANYEYES_CACHE_LIMIT": storage.cache_limit,
                **remote,
            }
