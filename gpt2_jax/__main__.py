"""`python -m gpt2_jax` is the same as `gpt2-jax`."""

from gpt2_jax.cli.main import main

if __name__ == "__main__":
    main()
