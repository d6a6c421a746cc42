// Loss and gradient of tests/diagonal_lstm.toml by hand: straightforward C++, forwards and backwards, one sample.
//
// Arrays are row by row in the order of the spec: params (24, n) as wi1 wf1 wo1 wg1 ui1 .. ug1 bi1 .. bg1 wi2 .. bg2,
// state (4, n) as h1 c1 h2 c2, x and y (T, n). `grad` (24, n) is written; the loss is returned.
#include <cmath>
#include <vector>

namespace {

double sigmoid(double z) { return 1.0 / (1.0 + std::exp(-z)); }

// What one layer keeps of one step: gates i f o g, the cell and its tanh, the output; n entries each.
struct Step {
    std::vector<double> i, f, o, g, c, tanh_c, h;
    explicit Step(int n) : i(n), f(n), o(n), g(n), c(n), tanh_c(n), h(n) {}
};

void forward(int n, const double* p, const double* x, const double* h, const double* c, Step& s) {
    const double *w = p, *u = p + 4 * n, *b = p + 8 * n;
    for (int k = 0; k < n; k++) {
        s.i[k] = sigmoid(w[k] * x[k] + u[k] * h[k] + b[k]);
        s.f[k] = sigmoid(w[n + k] * x[k] + u[n + k] * h[k] + b[n + k]);
        s.o[k] = sigmoid(w[2 * n + k] * x[k] + u[2 * n + k] * h[k] + b[2 * n + k]);
        s.g[k] = std::tanh(w[3 * n + k] * x[k] + u[3 * n + k] * h[k] + b[3 * n + k]);
        s.c[k] = s.f[k] * c[k] + s.i[k] * s.g[k];
        s.tanh_c[k] = std::tanh(s.c[k]);
        s.h[k] = s.o[k] * s.tanh_c[k];
    }
}

// dh, dc: cotangents of h(t), c(t) on entry, of h(t-1), c(t-1) on return; dx is written.
void backward(int n, const double* p, const double* x, const double* h, const double* c, const Step& s, double* dh,
              double* dc, double* dx, double* grad) {
    for (int k = 0; k < n; k++) {
        const double t = s.tanh_c[k], cell = dc[k] + dh[k] * s.o[k] * (1.0 - t * t);
        const double d[4] = {
            cell * s.g[k] * s.i[k] * (1.0 - s.i[k]),
            cell * c[k] * s.f[k] * (1.0 - s.f[k]),
            dh[k] * t * s.o[k] * (1.0 - s.o[k]),
            cell * s.i[k] * (1.0 - s.g[k] * s.g[k]),
        };
        double to_x = 0.0, to_h = 0.0;
        for (int gate = 0; gate < 4; gate++) {
            const int e = gate * n + k;
            to_x += d[gate] * p[e];
            to_h += d[gate] * p[4 * n + e];
            grad[e] += d[gate] * x[k];
            grad[4 * n + e] += d[gate] * h[k];
            grad[8 * n + e] += d[gate];
        }
        dx[k] = to_x;
        dh[k] = to_h;
        dc[k] = cell * s.f[k];
    }
}

}  // namespace

extern "C" double diagonal_lstm(int T, int n, const double* params, const double* state, const double* x,
                                const double* y, double* grad) {
    const double *first = params, *second = params + 12 * n;
    std::vector<Step> one(T, Step(n)), two(T, Step(n));
    double loss = 0.0;
    for (int t = 0; t < T; t++) {
        forward(n, first, x + t * n, t ? one[t - 1].h.data() : state, t ? one[t - 1].c.data() : state + n, one[t]);
        forward(n, second, one[t].h.data(), t ? two[t - 1].h.data() : state + 2 * n,
                t ? two[t - 1].c.data() : state + 3 * n, two[t]);
        for (int k = 0; k < n; k++) {
            const double error = two[t].h[k] - y[t * n + k];
            loss += 0.5 * error * error;
        }
    }
    std::vector<double> dh1(n), dc1(n), dh2(n), dc2(n), dx(n);
    for (int e = 0; e < 24 * n; e++) grad[e] = 0.0;
    for (int t = T - 1; t >= 0; t--) {
        for (int k = 0; k < n; k++) dh2[k] += two[t].h[k] - y[t * n + k];
        backward(n, second, one[t].h.data(), t ? two[t - 1].h.data() : state + 2 * n,
                 t ? two[t - 1].c.data() : state + 3 * n, two[t], dh2.data(), dc2.data(), dx.data(), grad + 12 * n);
        for (int k = 0; k < n; k++) dh1[k] += dx[k];
        backward(n, first, x + t * n, t ? one[t - 1].h.data() : state, t ? one[t - 1].c.data() : state + n, one[t],
                 dh1.data(), dc1.data(), dx.data(), grad);
    }
    return loss;
}
