/*
 * A libnvidia-ml.so.1 that answers from a file, so that tests exercise the real binding without a GPU.
 *
 * FAKE_NVML_ANSWERS names the file: one "key=value" line an answer, such as "devices.0.memory.total=85899345920".
 *   value "!3"      the call returns NVML error 3
 *   value "~700000" a counter that grows by 700000 a second
 *   no line         NVML_ERROR_NOT_SUPPORTED
 * The file is read again when it changes. Without the variable there is no driver: nvmlInit fails.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, TIMEOUT = 10, FUNCTION_NOT_FOUND = 13 };
enum { MAX_ANSWERS = 4096, MAX_GPUS = 16, MAX_SLICES = 8 };

struct device { int gpu, slice; };
static struct device devices[MAX_GPUS][MAX_SLICES + 1];
static struct { char key[96], value[160]; } answers[MAX_ANSWERS];
static int count;
static struct timespec read_at;
static ino_t read_inode;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int load(void) {
    const char *path = getenv("FAKE_NVML_ANSWERS");
    struct stat state;
    char line[320];
    if (!path || stat(path, &state)) return DRIVER_NOT_LOADED;
    if (state.st_ino == read_inode && !memcmp(&state.st_mtim, &read_at, sizeof read_at)) return SUCCESS;
    FILE *file = fopen(path, "r");
    if (!file) return DRIVER_NOT_LOADED;
    for (count = 0; count < MAX_ANSWERS && fgets(line, sizeof line, file);) {
        char *equals = strchr(line, '=');
        if (!equals) continue;
        *equals = 0;
        equals[1 + strcspn(equals + 1, "\n")] = 0;
        snprintf(answers[count].key, sizeof answers[count].key, "%s", line);
        snprintf(answers[count].value, sizeof answers[count].value, "%s", equals + 1);
        count++;
    }
    fclose(file);
    read_at = state.st_mtim;
    read_inode = state.st_ino;
    return SUCCESS;
}

static int text(char *out, size_t size, const char *format, ...) {
    char key[96];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&lock);
    int result = load();
    if (!result) {
        result = NOT_SUPPORTED;
        for (int i = 0; i < count; i++) {
            if (strcmp(answers[i].key, key)) continue;
            result = answers[i].value[0] == '!' ? atoi(answers[i].value + 1) : SUCCESS;
            snprintf(out, size, "%s", answers[i].value);
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static int value_of(const char *text_value, unsigned long long *out) {
    if (*text_value == '~') {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        *out = (unsigned long long)(atof(text_value + 1) * (now.tv_sec + now.tv_nsec * 1e-9));
    } else {
        *out = strtoull(text_value, 0, 10);
    }
    return SUCCESS;
}

static int number(const struct device *d, const char *field, unsigned long long *out) {
    char value[160];
    int result = d->slice < 0 ? text(value, sizeof value, "devices.%d.%s", d->gpu, field)
                              : text(value, sizeof value, "devices.%d.slices.%d.%s", d->gpu, d->slice, field);
    return result ? result : value_of(value, out);
}

static int small(const struct device *d, const char *field, unsigned *out) {
    unsigned long long value;
    int result = number(d, field, &value);
    if (!result) *out = (unsigned)value;
    return result;
}

static int word(const struct device *d, const char *field, char *out, unsigned size) {
    return d->slice < 0 ? text(out, size, "devices.%d.%s", d->gpu, field)
                        : text(out, size, "devices.%d.slices.%d.%s", d->gpu, d->slice, field);
}

int nvmlInitWithFlags(unsigned flags) {
    char value[160];
    int result = load();
    (void)flags;
    for (int g = 0; g < MAX_GPUS; g++)
        for (int s = 0; s <= MAX_SLICES; s++) devices[g][s] = (struct device){g, s - 1};
    if (result) return result;
    result = text(value, sizeof value, "init");
    return result == NOT_SUPPORTED ? SUCCESS : result;
}
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "fake NVML error"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(out, size, "system.driver"); }
int nvmlSystemGetCudaDriverVersion(int *out) {
    char value[160];
    int result = text(value, sizeof value, "system.cuda");
    if (!result) *out = atoi(value);
    return result;
}
int nvmlDeviceGetCount_v2(unsigned *out) {
    char value[160];
    int result = text(value, sizeof value, "count");
    if (!result) *out = (unsigned)atoi(value);
    return result;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **out) {
    char value[160];
    unsigned total = 0;
    int result = nvmlDeviceGetCount_v2(&total);
    if (result) return result;
    if (index >= total) return INVALID_ARGUMENT;
    *out = &devices[index][0];
    result = text(value, sizeof value, "devices.%u.handle", index); /* a lost GPU: "!15" */
    return result == NOT_SUPPORTED ? SUCCESS : result;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **out) {
    char value[160];
    unsigned total = 0;
    nvmlDeviceGetCount_v2(&total);
    for (unsigned g = 0; g < total; g++)
        for (int s = 0; s <= MAX_SLICES; s++)
            if (!word(&devices[g][s], "uuid", value, sizeof value) && !strcmp(value, uuid)) {
                *out = &devices[g][s];
                return SUCCESS;
            }
    return NOT_FOUND;
}
int nvmlDeviceGetName(struct device *d, char *out, unsigned size) { return word(d, "name", out, size); }
int nvmlDeviceGetUUID(struct device *d, char *out, unsigned size) { return word(d, "uuid", out, size); }

int nvmlDeviceGetMemoryInfo(struct device *d, unsigned long long *out) {
    unsigned long long total, used, reserved = 0;
    int result = number(d, "memory.total", &total);
    if (!result) result = number(d, "memory.used", &used);
    if (result) return result;
    number(d, "memory.reserved", &reserved);
    out[0] = total;
    out[1] = total - used - reserved;
    out[2] = used + reserved; /* the first version of the call does not tell them apart */
    return SUCCESS;
}
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(struct device *d, struct memory_v2 *out) {
    int result = number(d, "memory.reserved", &out->reserved);
    if (out->version != 0x02000028) return INVALID_ARGUMENT;
    if (!result) result = number(d, "memory.total", &out->total);
    if (!result) result = number(d, "memory.used", &out->used);
    if (!result) out->free = out->total - out->used - out->reserved;
    return result;
}
int nvmlDeviceGetCudaComputeCapability(struct device *d, unsigned *major, unsigned *minor) {
    int result = small(d, "compute_capability.0", major);
    return result ? result : small(d, "compute_capability.1", minor);
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(struct device *d, struct pci *out) {
    return word(d, "pci", out->bus_id, sizeof out->bus_id);
}
int nvmlDeviceGetMigMode(struct device *d, unsigned *now, unsigned *pending) {
    int result = small(d, "mig", now);
    if (!result) *pending = *now;
    return result;
}
int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *out) { (void)d; *out = 7; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned index, struct device **out) {
    char value[160];
    if (index >= MAX_SLICES) return INVALID_ARGUMENT;
    *out = &devices[d->gpu][index + 1];
    return word(*out, "uuid", value, sizeof value) ? NOT_FOUND : SUCCESS;
}
struct attributes { unsigned sms, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
                    unsigned long long memory_mb; };
int nvmlDeviceGetAttributes_v2(struct device *d, struct attributes *out) {
    int result = small(d, "attributes.multiprocessorCount", &out->sms);
    if (!result) result = small(d, "attributes.gpuInstanceSliceCount", &out->gpu_slices);
    if (!result) result = small(d, "attributes.computeInstanceSliceCount", &out->compute_slices);
    return result ? result : number(d, "attributes.memorySizeMB", &out->memory_mb);
}
int nvmlDeviceGetClockInfo(struct device *d, unsigned kind, unsigned *out) {
    return small(d, kind == 1 ? "clocks.sm" : "clocks.memory", out);
}
int nvmlDeviceGetMaxClockInfo(struct device *d, unsigned kind, unsigned *out) {
    return small(d, kind == 1 ? "max_clocks.sm" : "max_clocks.memory", out);
}
int nvmlDeviceGetEnforcedPowerLimit(struct device *d, unsigned *out) { return small(d, "power_limit", out); }
int nvmlDeviceGetPowerManagementDefaultLimit(struct device *d, unsigned *out) {
    return small(d, "default_power_limit", out);
}
int nvmlDeviceGetPowerUsage(struct device *d, unsigned *out) { return small(d, "power", out); }
int nvmlDeviceGetTotalEnergyConsumption(struct device *d, unsigned long long *out) { return number(d, "energy", out); }
int nvmlDeviceGetTemperature(struct device *d, unsigned sensor, unsigned *out) {
    (void)sensor;
    return small(d, "temperature", out);
}
int nvmlDeviceGetEccMode(struct device *d, unsigned *now, unsigned *pending) {
    int result = small(d, "ecc.mode", now);
    if (!result) *pending = *now;
    return result;
}
int nvmlDeviceGetTotalEccErrors(struct device *d, unsigned kind, unsigned counter, unsigned long long *out) {
    (void)kind, (void)counter;
    return number(d, "ecc.uncorrected", out);
}
int nvmlDeviceGetPersistenceMode(struct device *d, unsigned *out) { return small(d, "persistence", out); }
int nvmlDeviceGetUtilizationRates(struct device *d, unsigned *out) {
    int result = small(d, "utilization.gpu", &out[0]);
    return result ? result : small(d, "utilization.memory", &out[1]);
}
int nvmlDeviceGetCurrentClocksEventReasons(struct device *d, unsigned long long *out) {
    unsigned old;
    return small(d, "old_driver", &old) ? number(d, "clock_reasons", out) : FUNCTION_NOT_FOUND;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *d, unsigned long long *out) {
    return number(d, "clock_reasons", out);
}
int nvmlDeviceGetPcieThroughput(struct device *d, unsigned counter, unsigned *out) {
    return small(d, counter ? "pcie.rx" : "pcie.tx", out);
}
/* "event_types" is the mask of what the GPU supports, and "xids" a list of what has come: errors with a number ("xid")
   and, of a slice, its "gpu_instance". A set gets what comes after a device was registered with it. */
enum { XID_CRITICAL_ERROR = 8, ANY_INSTANCE = 0xFFFFFFFFu };
struct event_set { struct device *registered[MAX_GPUS]; unsigned next[MAX_GPUS], registrations; };
struct event { struct device *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetSupportedEventTypes(struct device *d, unsigned long long *out) {
    return number(d, "event_types", out);
}
int nvmlDeviceGetGpuInstanceId(struct device *d, unsigned *out) {
    return d->slice < 0 ? NOT_SUPPORTED : small(d, "gpu_instance", out);
}
int nvmlEventSetCreate(struct event_set **out) {
    *out = calloc(1, sizeof **out);
    return SUCCESS;
}
int nvmlEventSetFree(struct event_set *set) { free(set); return SUCCESS; }
int nvmlDeviceRegisterEvents(struct device *d, unsigned long long types, struct event_set *set) {
    unsigned long long supported;
    int result = d->slice < 0 ? nvmlDeviceGetSupportedEventTypes(d, &supported) : NOT_SUPPORTED;
    if (result) return result;
    if (types & ~supported) return NOT_SUPPORTED;
    unsigned *next = &set->next[set->registrations];
    if (small(d, "xids.count", next)) *next = 0;
    set->registered[set->registrations++] = d;
    return SUCCESS;
}
int nvmlEventSetWait_v2(struct event_set *set, struct event *out, unsigned timeout_ms) {
    char field[64];
    if (timeout_ms) return INVALID_ARGUMENT; /* nobody waits here */
    for (unsigned i = 0; i < set->registrations; i++) {
        struct device *d = set->registered[i];
        unsigned total = 0;
        int result = small(d, "xids.count", &total);
        if (result && result != NOT_SUPPORTED) return result;
        if (set->next[i] >= total) continue;
        *out = (struct event){d, XID_CRITICAL_ERROR, 0, ANY_INSTANCE, ANY_INSTANCE};
        snprintf(field, sizeof field, "xids.%u.gpu_instance", set->next[i]);
        small(d, field, &out->gpu_instance);
        snprintf(field, sizeof field, "xids.%u.xid", set->next[i]++);
        return number(d, field, &out->data);
    }
    return TIMEOUT;
}
struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(struct device *d, unsigned *size, struct process *out) {
    char field[64], value[160];
    unsigned total = 0, room = *size;
    int result = small(d, "processes.count", &total);
    if (result) return result;
    *size = total;
    if (total > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < total; i++) {
        snprintf(field, sizeof field, "processes.%u.pid", i);
        if ((result = word(d, field, value, sizeof value))) return result;
        out[i].pid = (unsigned)strtoul(value, 0, 10);
        snprintf(field, sizeof field, "processes.%u.memory", i);
        /* the driver's way of saying that it does not know */
        out[i].memory = word(d, field, value, sizeof value) ? ~0ULL : strtoull(value, 0, 10);
    }
    return SUCCESS;
}
