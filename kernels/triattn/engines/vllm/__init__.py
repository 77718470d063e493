"""vLLM 0.26 and newer: V1 and V2 model runner."""
