"""How is a forward shared by several processes, each with a GPU of its own?"""
