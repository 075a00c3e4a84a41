"""The predecessor's entry point for several GPUs: `torchrun --nproc-per-node 8 train_ddp.py --config-name=NAME`.

It is train.py, which trains in as many processes as torchrun starts. `dataloader.batch_size` is that of one update over
all of them; in the predecessor it was per GPU, and the log says which number equals it. Exit status: as train.py.
"""

from train import main

if __name__ == "__main__":
    main()
