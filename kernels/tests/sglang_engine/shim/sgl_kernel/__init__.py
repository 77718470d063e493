"""Stand-in for SGLang's compiled kernels, so that the released SGLang can be imported on a CPU. For tests only.

SGLang imports these seven names on every CPU and never calls them with the torch_native attention backend. It
registers no operator: SGLang must not take its AMX paths.
"""

from __future__ import annotations

from typing import Any, NoReturn

NAMES = (
    "assign_req_to_token_pool_cpu",
    "copy_all_layer_kv_cache_cpu",
    "assign_extend_cache_locs_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "build_tree_kernel_efficient_cpu",
    "verify_tree_greedy_cpu",
)


def _absent(name: str) -> Any:
    def function(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name}: the tests' stand-in has no kernels")

    function.__name__ = name
    return function


globals().update({name: _absent(name) for name in NAMES})
__version__ = "0.0.0"
