"""What clients do between the steps of the collector, to graphs of `interleaving`.

Each action returns the references to be stored, from what a client has seen of the graph.
"""


def link(world, client, x, y):
    return {0: world.refs[0] | {x}}


def unlink(world, client, x, y):
    return {0: world.refs[0] - {x}}


def new(world, client, x, y):
    """A new object, from the root, that refers to an old one."""
    fresh = world.fresh()
    return {0: world.refs[0] | {fresh}, fresh: {x}}


def hang(world, client, x, y):
    """A new object that hangs on an old one, if that is there, and refers to another.

    What is garbage when it is born, which no Connection makes, may be forgotten until the next full pack.
    """
    if x not in world.refs:
        return again(world, client, x, y)
    fresh = world.fresh()
    return {x: client.view(x) | {fresh}, fresh: {y}}


def again(world, client, x, y):
    """An object as it was, whether it still is there or not."""
    return {x: client.view(x)}


def join(world, client, x, y):
    return {x: client.view(x) | {y}}


def cut(world, client, x, y):
    return {x: client.view(x) - {y}}


def empty(world, client, x, y):
    return {x: set()}


def move(world, client, x, y):
    """A reference goes from the root to another object: its count is what it was."""
    return {0: world.refs[0] - {x}, y: client.view(y) | {x}}


def swap(world, client, x, y):
    """What refers to one refers to the other, which refers to the first."""
    return {0: world.refs[0] - {x} | {y}, y: client.view(y) | {x}}


def both(world, client, x, y):
    """Two objects that refer to each other, from the root."""
    return {0: world.refs[0] | {x}, x: client.view(x) | {y}, y: client.view(y) | {x}}


ACTIONS = {act.__name__: act for act in (link, unlink, new, hang, again, join, cut, empty, move, swap, both)}


def act(world, client, action, x, y, handle=None):
    """Let a client commit."""
    world.store(ACTIONS[action](world, client, x, y), client.session, handle)


def any_act(world):
    """Let any client do anything, mostly to what it saw long ago."""
    source = world.source
    client = source.choice(world.clients)
    if source.random() < 0.2:
        client.sync()
        return
    x, y = source.choice(world.nodes), source.choice(world.nodes)
    handle = client.conflict if source.random() < 0.1 else None
    act(world, client, source.choice(list(ACTIONS)), x, y, handle)
