//! What the agent is meant to reach.
