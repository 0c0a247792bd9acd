"""What the classes of both frameworks share: keywords, remade objects, lists."""
