"""What runs in Ray's workers for a test; apart, since a worker imports the whole file."""

import ray


class Dummy:
    """Says what Ray gave it."""

    def given(self) -> tuple[list[str], float, list[str]]:
        """Its GPUs' ids, how many it has of them, and the bundles that they are of (which Ray tells nowhere else)."""
        share = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        names = [name.split("_") for name in ray._private.worker.global_worker.core_worker.resource_ids()]
        bundles = [name[2] for name in names if name[:2] == ["GPU", "group"] and len(name) == 4]
        return [str(gpu) for gpu in ray.get_gpu_ids()], share, bundles

    def node(self) -> str:
        """Where it runs."""
        return node_id()


def node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())
