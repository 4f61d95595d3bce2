"""Four workers, each of which serves many requests at a time by greenlets."""

workers = 4
worker_class = "gevent"
bind = "127.0.0.1:8000"
