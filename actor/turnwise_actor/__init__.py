"""An actor: answers dialogue turns from the latest policy and keeps nothing about a dialogue."""
