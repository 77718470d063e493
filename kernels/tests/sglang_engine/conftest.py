import torch

# The machine's cores are for the engines; the oracle needs one.
torch.set_num_threads(1)
