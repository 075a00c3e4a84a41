"""The impact of a config change on a pretrained model: which tensors still load, and whether the function stays."""
