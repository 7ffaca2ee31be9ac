"""``python -m dino_ray``: the command ``dino-ray`` of this Python."""

from dino_ray.cli import main

if __name__ == "__main__":
    main(prog_name="dino-ray")
