"""Compiled programs that outlive their process."""

import jax

from fcn_jax.files import cache_folder


def keep_compiled() -> None:
    """Keeps programs that took over a second to compile, for the next process.

    They lie in the folder "compiled" of `cache_folder`, unless jax is told another
    (JAX_COMPILATION_CACHE_DIR) or not to (JAX_ENABLE_COMPILATION_CACHE=false). A
    program is known by what it computes, for what machine, and by the version of jax.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = str(cache_folder() / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
