/* test_spin.c - for each line of stdin, "h" (it would end with a packet) and "m" (in vain) per wait: prints which waits were awake. */
#include "check.h"
#include "spin.h"

int main(void)
{
	static char line[1 << 12];

	while (fgets(line, sizeof(line), stdin)) {
		struct spin spin = { 0 };

		for (const char *wait = line; *wait != '\n'; wait++) {
			bool awake = spin_is_worth_it(&spin);

			putchar(awake ? '!' : '.');
			if (awake && *wait == 'h')
				spin_hit(&spin);
			else if (awake)
				spin_miss(&spin);
			CHECK(spin.credit <= SPIN_CREDIT_MAX);
		}
		putchar('\n');
	}
	return 0;
}
