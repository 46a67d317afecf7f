package headrace.flink;

import java.nio.charset.StandardCharsets;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.runtime.execution.SuppressRestartsException;
import org.apache.flink.util.Collector;

/** What ends a pipeline for good: the job fails with it and is not begun again. Nothing comes out of this. */
public class Verdict implements FlatMapFunction<byte[], byte[]> {
    private static final long serialVersionUID = 1L;

    @Override
    public void flatMap(byte[] verdict, Collector<byte[]> out) {
        throw new SuppressRestartsException(new RuntimeException(new String(verdict, StandardCharsets.UTF_8)));
    }
}
