"""What make_dino_pictures.py draws its pictures with."""
