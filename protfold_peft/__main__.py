"""`python -m protfold_peft`, the form that `accelerate launch --module` takes."""

from protfold_peft.cli.main import main

if __name__ == "__main__":
    main()
