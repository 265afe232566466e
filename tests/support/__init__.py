"""What several tests share: rigs, fakes, peers, fixtures."""
