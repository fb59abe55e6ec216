"""A small pre-norm transformer as a text graph, in canonical form: width 32, two heads of 16, five classes."""

WIDTH, HEADS, HIDDEN, CLASSES = 32, 2, 64, 5
GELU = (
    "{a}_d = Div({x}, root) {a}_e = Erf({a}_d) {a}_s = Add({a}_e, one) {a}_m = Mul({x}, {a}_s) {a} = Mul({a}_m, half)"
)


def transformer(*, batch: str = "N", tokens: str = "T", depth: int = 2) -> str:
    """tokens (batch, tokens, 32) => logits (batch, 5); names start with the block's number, b0_q, b0_scores, b1_fc1..."""
    weights = [
        "int64[4] split = {0, 0, 2, 16}",
        "int64[3] join = {0, 0, 32}",
        "int64 first = {0}",
        "float root = {1.41421356}",
        "float one = {1}",
        "float half = {0.5}",
    ]
    nodes: list[str] = []

    def norm(name: str, x: str) -> str:
        weights.extend((f"float[{WIDTH}] {name}_g", f"float[{WIDTH}] {name}_b"))
        nodes.append(f"{name} = LayerNormalization({x}, {name}_g, {name}_b)")
        return name

    def linear(name: str, x: str, inputs: int, outputs: int) -> str:
        weights.extend((f"float[{inputs},{outputs}] {name}_W", f"float[{outputs}] {name}_b"))
        nodes.append(f"{name} = MatMul({x}, {name}_W) {name}_out = Add({name}, {name}_b)")
        return f"{name}_out"

    def heads(name: str, x: str, order: str) -> str:
        out = linear(name, x, WIDTH, WIDTH)
        nodes.append(f"{name}_r = Reshape({out}, split) {name}_t = Transpose<perm = [{order}]>({name}_r)")
        return f"{name}_t"

    x = "tokens"
    for index in range(depth):
        b = f"b{index}"
        inner = norm(f"{b}_norm1", x)
        q, k, v = (
            heads(f"{b}_q", inner, "0, 2, 1, 3"),
            heads(f"{b}_k", inner, "0, 2, 3, 1"),
            heads(f"{b}_v", inner, "0, 2, 1, 3"),
        )
        nodes.append(
            f"{b}_scores = MatMul({q}, {k}) {b}_probs = Softmax<axis = -1>({b}_scores) {b}_context = MatMul({b}_probs, {v})"
            f" {b}_c = Transpose<perm = [0, 2, 1, 3]>({b}_context) {b}_joined = Reshape({b}_c, join)"
        )
        nodes.append(f"{b}_mid = Add({x}, {linear(f'{b}_proj', f'{b}_joined', WIDTH, WIDTH)})")
        hidden = linear(f"{b}_fc1", norm(f"{b}_norm2", f"{b}_mid"), WIDTH, HIDDEN)
        nodes.append(GELU.format(a=f"{b}_gelu", x=hidden))
        out = linear(f"{b}_fc2", f"{b}_gelu", HIDDEN, WIDTH)
        nodes.append(f"{b}_end = Add({b}_mid, {out})")
        x = f"{b}_end"
    nodes.append(f"class_token = Gather<axis = 1>({norm('norm', x)}, first)")
    linear("head", "class_token", WIDTH, CLASSES)
    nodes.append("logits = Identity(head_out)")
    return f"(float[{batch},{tokens},{WIDTH}] tokens) => (float[A,B] logits) <{', '.join(weights)}> {{ {' '.join(nodes)} }}"
