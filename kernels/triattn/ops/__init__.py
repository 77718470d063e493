"""A round on a paged cache: score, select, compact; in plain torch and in Triton kernels."""
