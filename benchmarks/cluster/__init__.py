"""Class weights over several processes: what they hold and what they send, by formula and measured."""
