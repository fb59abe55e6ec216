"""What onnxruntime's CPU provider makes of neighbouring nodes, and the layout has to allow for."""

# Merged with a float Gemm before onnxruntime looks for quantized ones: such a Gemm is never quantized. A Reshape between the
# two keeps them apart.
FUSED_INTO_GEMM = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "Elu",
        "Selu",
        "HardSigmoid",
        "Softplus",
        "Softsign",
        "ThresholdedRelu",
        "Celu",
    }
)
