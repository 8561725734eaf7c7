"""The learner: journals facts, trains the policy with RLlib, broadcasts it."""
