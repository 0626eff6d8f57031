"""The commands of `unicorn-monai`, each of which loads what it needs when it runs."""
