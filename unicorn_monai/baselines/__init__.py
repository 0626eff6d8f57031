"""What UnIACorN is compared with: unpaired image translation (CycleGAN, CUT) and self-training on pseudo-labels."""
