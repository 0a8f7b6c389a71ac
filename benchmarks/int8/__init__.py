"""8-bit networks beside other engines: trained networks and real data, the peers' models, speed and accuracy."""
