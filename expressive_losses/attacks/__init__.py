"""Attacks: points of a box at which the network does badly. One attack a file."""

from expressive_losses.attacks.base import Attack, IterativeAttack

__all__ = ["Attack", "IterativeAttack"]
