"""Program → source or command stream → artifact, one package for each kind of target."""
