#include "cmaes_internal.h"

#include <math.h>
#include <stdlib.h>

static double min3(double a, double b, double c) { return fmin(a, fmin(b, c)); }

/* Raw weights ln((λ+1)/2) − ln i; their sums over both halves. */
static void raw_weights(nps_cmaes_params_t *p, double *positive, double *negative, double *mu_minus) {
  double squares = 0, negative_squares = 0;
  *positive = *negative = 0;
  for (int i = 1; i <= p->lambda; i++) {
    const double w = log((p->lambda + 1) / 2.0) - log(i);
    p->weight[i - 1] = w;
    if (i <= p->mu) {
      *positive += w;
      squares += w * w;
    } else {
      *negative += fabs(w);
      negative_squares += w * w;
    }
  }
  p->mu_eff = *positive * *positive / squares;
  *mu_minus = negative_squares > 0 ? *negative * *negative / negative_squares : 0;
}

void nps_cmaes_params_set(nps_cmaes_params_t *p, int n, int lambda, bool diagonal) {
  double positive, negative, mu_minus;
  free(p->weight);
  *p = (nps_cmaes_params_t){.n = n, .lambda = lambda, .mu = lambda / 2};
  p->weight = nps_xcalloc((size_t)lambda, sizeof *p->weight);
  raw_weights(p, &positive, &negative, &mu_minus);
  const double m = p->mu_eff, d = n;
  p->chi = sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d));
  p->c_sigma = (m + 2) / (d + m + 5);
  p->d_sigma = 1 + 2 * fmax(0, sqrt((m - 1) / (d + 1)) - 1) + p->c_sigma;
  p->c_c = (4 + m / d) / (d + 4 + 2 * m / d);
  p->c_1 = 2 / ((d + 1.3) * (d + 1.3) + m);
  p->c_mu = fmin(1 - p->c_1, 2 * (m - 1.75 + 1 / m) / ((d + 2) * (d + 2) + m));
  if (diagonal) {
    p->c_1 *= (d + 2) / 3;
    if (p->c_1 > 1) p->c_1 = 1;
    p->c_mu = fmin(1 - p->c_1, (d + 2) / 3 * p->c_mu);
  }
  /* With two candidates and few variables c_mu is next to nothing, or less. */
  if (p->c_mu < 0) p->c_mu = 0;
  p->alpha =
      p->c_mu > 0 ? min3(1 + p->c_1 / p->c_mu, 1 + 2 * mu_minus / (m + 2), (1 - p->c_1 - p->c_mu) / (d * p->c_mu)) : 0;
  for (int i = 0; i < lambda; i++)
    p->weight[i] = i < p->mu ? p->weight[i] / positive : negative > 0 ? p->alpha * p->weight[i] / negative : 0;
  const double interval = floor(1 / (10 * d * (p->c_1 + p->c_mu)));
  p->interval = interval > 1 ? (int)fmin(interval, 1e6) : 1;
}
