package headrace.flink;

import java.util.HashMap;
import java.util.Map;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.OffsetResetStrategy;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition;

/** Where a job begins to read: where the log is; partitions that it does not know at their oldest message. */
public class StartOffsets {
    private final Map<TopicPartition, Long> offsets = new HashMap<>();

    public void add(String topic, int partition, long offset) {
        offsets.put(new TopicPartition(topic, partition), offset);
    }

    public OffsetsInitializer initializer() {
        return OffsetsInitializer.offsets(offsets, OffsetResetStrategy.EARLIEST);
    }
}
