"""What a change of its config would cost a pretrained model: which tensors load, and whether it computes the same."""
